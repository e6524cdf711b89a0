"""Evaluation of chat models in one language: MGSM, translated HumanEval and LLM as a judge."""
