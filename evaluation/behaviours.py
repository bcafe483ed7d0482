"""Reasoning behaviours, counted by readable patterns: grounding, subgoals, backtracking, verification.

The four behaviours are those of the paper's analysis (Fig. 7). A behaviour counts once per sentence, in the
language of the sentence: Chinese where it has a Han character, else English. The patterns are alternatives of fixed
phrases without nested repetition, so that time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum


class Behaviour(StrEnum):
    """A way of reasoning."""

    GROUNDING = "grounding"
    """It recalls or quotes what the document says."""
    SUBGOAL_SETTING = "subgoal_setting"
    """It splits the task or states what it has to find next."""
    BACKTRACKING = "backtracking"
    """It notices a mistake or drops an approach."""
    VERIFICATION = "verification"
    """It checks a finding or a result."""


BehaviourCounts = Mapping[Behaviour, int]
"""Instances of every behaviour in one response."""

_TEXT = r"(?:text|passage|document|article|context|excerpt|report|paper|table|story|paragraph|section|filing)"
_ENGLISH = {
    Behaviour.GROUNDING: (
        rf"according to (?:the|this|that) (?:\w+ )?{_TEXT}",
        rf"(?:the|this) (?:\w+ )?{_TEXT} (?:also )?(?:says|states|mentions|notes|shows|reads|describes|reports|gives|"
        "lists|indicates|explains|tells)",
        rf"(?:as )?(?:stated|mentioned|noted|described|listed|given|shown|reported) in the (?:\w+ )?{_TEXT}",
        rf"(?:in|from) (?:the|this) (?:\w+ )?{_TEXT},? (?:it|there|we|i) ",
        r"(?:paragraph|section|table|page|passage|chapter|note|line) \d",
        r"it (?:says|states|reads|mentions)\b",
        r"(?:i quote|quoting|the quote|the exact words)\b",
        r"looking at the (?:\w+ )?" + _TEXT,
    ),
    Behaviour.SUBGOAL_SETTING: (
        r"(?:first|firstly|to begin|to start),? (?:i|we|let|my)\b",
        r"(?:second|secondly|third|next|then|finally),? (?:i|we|let)(?: us|'s| will|'ll| need| should| have| can)",
        r"step (?:\d|one|two|three|four)\b",
        r"(?:the|my) (?:first|next|second|last|final) step\b",
        r"(?:i|we) (?:need|have|want) to (?:first )?(?:find|figure|determine|identify|know|compute|locate|look)",
        r"let(?: me|'s| us) (?:first |start|begin|find|look for|locate|identify|break|list|go through)",
        r"break (?:this|it|the question|the problem) (?:down|into)",
        r"to answer (?:this|the) ",
        r"(?:sub-?goal|sub-?question|sub-?problem)",
    ),
    Behaviour.BACKTRACKING: (
        r"(?:^|[,;:—-] ?|but |oh,? |no,? |hmm+,? )(?:wait|hold on|hang on)\b",
        r"(?:^|but |no,? )actually,",
        r"on second thought",
        r"let(?: me|'s| us) (?:go back|back up|start over|try again|try another|reconsider|rethink|re-?read|revisit)",
        r"(?:that|this)(?:'s| is| was| can't be| cannot be) (?:not right|right either|wrong|incorrect|a mistake|false)",
        r"(?:^|or )alternatively\b",
        r"i (?:made a mistake|was wrong|misread|misunderstood|overlooked|missed)",
        r"scratch that",
        r"(?:another|a different) (?:approach|way|interpretation)",
    ),
    Behaviour.VERIFICATION: (
        r"let(?: me|'s| us) (?:just |quickly )?(?:verify|check|confirm|make sure|re-?check|validate|recalculate|"
        "recompute)",
        r"double-? ?check",
        r"cross-? ?check",
        r"sanity check",
        r"to (?:verify|confirm|make sure|be sure|be safe)\b",
        r"(?:verifying|checking|confirming)\b",
        r"(?:does|do) (?:this|that|it|these|they) (?:match|make sense|agree|add up)",
        r"(?:which|this|that) (?:matches|confirms|agrees with|is consistent with)",
        r"(?:i|we) (?:should|need to|must|can) (?:verify|check|confirm|double)",
    ),
}
_CHINESE = {
    Behaviour.GROUNDING: (
        "根据(?:文本|文中|文章|原文|材料|表格|段落|报告|文档|上文|资料|给定)",
        "(?:文中|文章|原文|文本|材料|文档|报告|表格|段落)(?:里|中)?(?:明确|也|还)?(?:提到|指出|写道|说|显示|提及|描述|记载|表明|给出)",
        "(?:如|正如)(?:文中|原文|上文)所",
        "原文(?:是|为|如下)",
        "第[0-9一二三四五六七八九十]+(?:段|节|章|页|条)",
    ),
    Behaviour.SUBGOAL_SETTING: (
        "首先",
        "第[一二三四五]步|步骤[0-9一二三四五]",
        "接下来|下一步",
        "(?:我|我们)?(?:需要|得|要)先?(?:找到|找出|确定|弄清|计算|算出|查找|了解|定位)",
        "(?:让我|让我们|我们)先",
        "分(?:解|成|为)(?:几|两|三|四)?(?:个)?(?:步|部分|子问题|小问题)",
        "要回答这个问题",
    ),
    Behaviour.BACKTRACKING: (
        "等等|等一下|且慢",
        "不对|不是这样|搞错了|弄错了|看错了|算错了|理解错了|说错了",
        "重新(?:考虑|思考|来|看|审视|阅读|理解)",
        "换(?:一种|一个|个)(?:思路|方法|角度|方式)",
        "回(?:过头|到前面|头再)",
        "或者说|另一种可能",
    ),
    Behaviour.VERIFICATION: (
        "验证|核实|核对|验算|复核",
        "再?(?:检查|确认)(?:一下|一遍|一次)",
        "再(?:检查|确认|看|算)(?:一下|一遍|一次)",
        "(?:是否|是不是)(?:正确|一致|合理|匹配)",
        "(?:这|这个|结果)(?:与|和).{0,20}(?:一致|相符|吻合)",
    ),
}
_MARKS = " \t\r*#>_\"'`(-–—"
_SENTENCE = re.compile(r"[^.!?。！？；\n]+")
_HAN = re.compile(r"[\u4e00-\u9fff]")


def _compiled(phrases: Mapping[Behaviour, tuple[str, ...]], *, at_word: bool) -> dict[Behaviour, re.Pattern[str]]:
    """Compile one pattern per behaviour; English phrases begin where a word begins."""
    edge = r"(?<![a-z])" if at_word else ""
    return {name: re.compile(f"{edge}(?:{'|'.join(alternatives)})") for name, alternatives in phrases.items()}


_PATTERNS = {"en": _compiled(_ENGLISH, at_word=True), "zh": _compiled(_CHINESE, at_word=False)}


def count_behaviours(text: str) -> BehaviourCounts:
    """Count the sentences of the text that show each behaviour."""
    counts = dict.fromkeys(Behaviour, 0)
    for sentence in _SENTENCE.finditer(text.replace("’", "'").lower()):
        words = sentence[0].strip(_MARKS)
        for behaviour, pattern in _PATTERNS["zh" if _HAN.search(words) else "en"].items():
            counts[behaviour] += pattern.search(words) is not None
    return counts
