"""Handwritten translations into each language that keep all numbers, formulas and code."""

from typing import NamedTuple


class TranslatedText(NamedTuple):
    """A text in English and its translations by language."""

    english: str
    translations: dict[str, str]


MATHS = TranslatedText(
    'Josh buys a house for $80,000 and puts in $50,000.50 of repairs; the value grows by 150%. '
    'He works on it for three weeks. How much profit is made?\n'
    'The house cost 80,000+50,000.50=<<80000+50000.50=130000.50>>130,000.50 dollars.\n'
    '#### 1,102',
    {
        'zh': '乔希花80,000美元买了一套房子，又投入了50,000.50美元进行维修；房价上涨了150%。'
        '他为此工作了3个星期。他一共赚了多少利润？\n'
        '这套房子总共花费80,000+50,000.50=<<80000+50000.50=130000.50>>130,000.50美元。\n'
        '#### 1102',
        'ru': 'Джош покупает дом за 80 000 долларов и вкладывает в ремонт 50 000,50 доллара; '
        'стоимость дома вырастает на 150 %. Он работает над ним три недели. Какую прибыль он '
        'получит?\nДом обошёлся в 80 000+50 000,50=<<80000+50000.50=130000.50>>130 000,50 '
        'доллара.\n#### 1102',
        'fr': 'Josh achète une maison à 80 000 $ et y consacre 50 000,50 $ de travaux ; la valeur '
        'augmente de 150 %. Il y travaille pendant trois semaines. Quel est son bénéfice ?\n'
        'La maison a coûté 80 000+50 000,50=<<80000+50000.50=130000.50>>130 000,50 dollars.\n'
        '#### 1102',
        'es': 'Josh compra una casa por 80.000 $ e invierte 50.000,50 $ en reformas; el valor sube '
        'un 150 %. Trabaja en ella durante tres semanas. ¿Cuánto beneficio obtiene?\n'
        'La casa costó 80.000+50.000,50=<<80000+50000.50=130000.50>>130.000,50 dólares.\n'
        '#### 1102',
    },
)

LATEX = TranslatedText(
    r'Solve $x^2 = 9$ for positive $x$, where \[y = \frac{1}{2}\text{ if it exists}\] holds for '
    r'every number. The positive solution of this equation is \boxed{3}.',
    {
        'zh': r'求方程 $x^2 = 9$ 的正数解 $x$，其中 \[y = \frac{1}{2}\text{ 如果存在}\] '
        r'对每一个数都成立。这个方程的正数解是 \boxed{3}。',
        'ru': r'Решите $x^2=9$ для положительного $x$, где \[y = \frac{1}{2}\text{ если есть}\] '
        r'верно для любого числа. Положительное решение этого уравнения — \boxed{3}.',
        'fr': r'Résolvez $x^2 = 9$ pour $x$ positif, où \[y = \frac{1}{2}\text{ s’il existe}\] '
        r'est vrai pour tout nombre. La solution positive de cette équation est \boxed{3}.',
        'es': r'Resuelve $x^2 = 9$ para $x$ positivo, donde \[y = \frac{1}{2}\text{ si existe}\] '
        r'se cumple para todo número. La solución positiva de esta ecuación es \boxed{3}.',
    },
)

_BLOCK = '```python\ndef add_two(n):\n    # Two more.\n    return n + 2  # 2\n```'
CODE = TranslatedText(
    f'The function `add_two` adds a number to its argument and returns the sum:\n\n{_BLOCK}\n\n'
    'Call add_two() with any number, and never change sys.max_size while it runs.',
    {
        'zh': f'函数 `add_two` 将一个数加到它的参数上，然后返回它们的和：\n\n{_BLOCK}\n\n'
        '可以用任何数字调用add_two()，运行期间切勿更改sys.max_size的值。',
        'ru': f'Функция `add_two` прибавляет число к аргументу и возвращает сумму:\n\n{_BLOCK}\n\n'
        'Вызывайте add_two() с любым числом и не меняйте sys.max_size во время её работы.',
        'fr': f'La fonction `add_two` ajoute un nombre à son argument et renvoie la somme :\n\n'
        f'{_BLOCK}\n\nAppelez add_two() avec un nombre quelconque, et ne modifiez jamais '
        'sys.max_size pendant son exécution.',
        'es': f'La función `add_two` suma un número a su argumento y devuelve el resultado:\n\n'
        f'{_BLOCK}\n\nLlama a add_two() con cualquier número y no cambies nunca sys.max_size '
        'mientras se ejecuta.',
    },
)

ALL = {'maths': MATHS, 'latex': LATEX, 'code': CODE}
