"""Statistics of the released data in the UltraLink paper (Tables 2 and 3), for comparison."""

# Conversations by language and subset, in thousands. The row 'all' has the paper's own
# rounded totals.
CONVERSATIONS_THOUSANDS = {
    'en': {'chat_specific': 10, 'chat_agnostic': 67, 'math': 395, 'code': 186},
    'zh': {'chat_specific': 36, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'ru': {'chat_specific': 37, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'fr': {'chat_specific': 30, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'es': {'chat_specific': 34, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'all': {'chat_specific': 147, 'chat_agnostic': 112, 'math': 523, 'code': 250},
}
# Languages of the paper and of the released dataset, in its order.
LANGUAGES = tuple(code for code in CONVERSATIONS_THOUSANDS if code != 'all')
# Number of turns of all conversations, in thousands, and mean number of tokens of a turn's question
# and answer, without documents.
TURNS_THOUSANDS = 1623
QUESTION_TOKENS = 87.86
ANSWER_TOKENS = 290.35
