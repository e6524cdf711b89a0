"""UltraLink: generate, check, prune and release multilingual fine-tuning data.

Wang et al., UltraLink: An Open-Source Knowledge-Enhanced Multilingual Supervised Fine-tuning
Dataset, ACL 2024. The package needs the optional dependencies of the extra `ultralink`.

Each stage of the pipeline reads and writes directories of JSON Lines rows (see `shards`). These are
the rows, by the stages that write them:

documents   {"id", "language", "title", "text", "tokens"}: one segment of a document. The id is
            LANGUAGE-DOCUMENT-NUMBER: the language, the id of the document and the number of the
            segment, from 0.
dialogues   {"id", "language", "title", "document", "data", "kinds"}: one dialogue about a segment.
            The id is that of the segment. `data` alternates questions and answers. In the released
            files, the first question also contains the document; here, it does not. `kinds` has one
            entry per turn, the kind of its question: "initial", "in_depth" or "expansive".
criteria, translate, prune, import
            {"id", "language", "subset", "data"}: conversations (see `conversations`). The stage
            `prune` also reads dialogues; it does not change the rows that it keeps.
"""
