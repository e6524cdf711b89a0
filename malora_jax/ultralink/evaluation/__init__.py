"""Evaluation of multilingual models per language: MGSM, HumanEval and LLM as a judge."""
