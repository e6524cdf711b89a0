"""What the paper says of its data (Tables 2 and 3), to stand beside one's own."""

# Conversations by language and subset, in thousands; the sums are the paper's, rounded by it.
THOUSANDS = {
    'en': {'chat_specific': 10, 'chat_agnostic': 67, 'math': 395, 'code': 186},
    'zh': {'chat_specific': 36, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'ru': {'chat_specific': 37, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'fr': {'chat_specific': 30, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'es': {'chat_specific': 34, 'chat_agnostic': 11, 'math': 32, 'code': 16},
    'all': {'chat_specific': 147, 'chat_agnostic': 112, 'math': 523, 'code': 250},
}
# Turns of all conversations in thousands, and tokens of a turn without documents.
TURNS_THOUSANDS = 1623
QUESTION_TOKENS = 87.86
ANSWER_TOKENS = 290.35
