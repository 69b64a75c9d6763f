"""The generated tables in Chinese, for README_cn.md."""

from __future__ import annotations

import re

from tools.helpers.markdown import markdown_table

__all__ = ["in_chinese"]

# Patterns in cells of English tables, and what README_cn.md has in their place; they are replaced in this order.
_CHINESE = {
    r"^model$": "模型",
    r"^source$": "来源",
    r"^here$": "我们的结果",
    r"^not run$": "未训练",
    r"^params \(paper\)$": "参数量（论文）",
    r"^multiply-adds at (\S+) \(paper\)$": r"\1 的乘加数（论文）",
    r"^parameters, M$": "参数量，M",
    r"^multiply-adds, G$": "乘加数，G",
    r"\bbox AP": "框 AP",
    r", mask AP": "，掩码 AP",
    r"\bmask AP": "掩码 AP",
    r"mIoU multi-scale": "多尺度 mIoU",
    r"^paper's (?=框|掩码|多尺度)": "论文",
    r"^paper's ": "论文 ",
    r", %$": "，%",
    r"top-1 token labels": "top-1（token 标签）",
    r"\bnuclei\b": "细胞核",
    r"; ": "；",
    r"([^；]+) on ([^；(]+?)(?= \(|；|$)": r"\2：\1",
    r" \(median of (\d+) runs\)": r"（\1 次训练的中位数）",
}


def in_chinese(table: str) -> str:
    """A table of ``paper_layout.model_table`` or ``paper_layout.neighbors`` with Chinese words."""
    header, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    right = [number for number, cell in enumerate(rule) if cell.endswith(":")]
    return markdown_table(
        [_chinese(cell) for cell in header], [[_chinese(cell) for cell in row] for row in rows], right
    )


def _chinese(cell: str) -> str:
    for pattern, replacement in _CHINESE.items():
        cell = re.sub(pattern, replacement, cell)
    return cell
