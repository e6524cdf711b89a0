"""Text processing: readers of documents, segmentation, token counts, and comparison of texts."""
