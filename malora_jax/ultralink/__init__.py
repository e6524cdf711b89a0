"""UltraLink: multilingual data for fine-tuning, made, checked, pruned and released.

Wang et al., UltraLink: An Open-Source Knowledge-Enhanced Multilingual Supervised Fine-tuning
Dataset, ACL 2024. Needs the extra `ultralink`.

Stages read and write directories of rows (see `shards`). The rows of

documents   {"id", "language", "title", "text", "tokens"}: a segment of a document; the id is that
            of the document with the language before and the segment's number after it
dialogues   {"id", "language", "title", "document", "data", "kinds"}: the id is that of the segment,
            `data` alternates questions and answers, as the released files do but without the
            document, and `kinds` says of each turn which prompt asked: "initial", "in_depth" or
            "expansive"
criteria, translate, prune, import
            {"id", "language", "subset", "data"}: conversations (see `conversations`); prune takes
            dialogues too, and leaves all rows as they are
"""
