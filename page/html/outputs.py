"""Model outputs as HTML: side by side, or one during distillation. All text is escaped."""

from html import escape


def side_by_side(
    prompt: str,
    before: str,
    after: str,
    undistilled: str | None = None,
    writing: bool = False,
    chat: bool = False,
) -> str:
    """Render what the models write side by side, with the first word that differs from the original's marked.

    Args:
        prompt: What the models answer or continue.
        before: What the original model wrote.
        after: What the pruned model wrote.
        undistilled: What it wrote before its distillation, if it was distilled.
        writing: Whether the models are still writing, shown by a cursor.
        chat: Whether the prompt is a question, which stands above the answers.
    """
    asked = _prompt(prompt, chat)
    articles = [_article("Original", "before", asked, before, after, writing)]
    if undistilled is not None:
        articles.append(_article("Pruned", "undistilled", asked, undistilled, before, writing))
    title = "Pruned" if undistilled is None else "Distilled"
    articles.append(_article(title, "after", asked, after, before, writing))
    return f'<section class="texts">{"".join(articles)}</section>'


def _prompt(prompt: str, chat: bool) -> str:
    return f'<span class="prompt{" question" if chat else ""}">{escape(prompt)}</span>'


def _article(title: str, element: str, asked: str, text: str, other: str, writing: bool) -> str:
    start, end = first_difference(text, other)
    body = escape(text[:start])
    if end > start:
        body += f"<mark>{escape(text[start:end])}</mark>"
    body += escape(text[end:])
    cursor = '<span class="cursor"></span>' if writing else ""
    return f'<article><h2>{title}</h2><p class="text" id="text-{element}">{asked}{body}{cursor}</p></article>'


def first_difference(text: str, other: str) -> tuple[int, int]:
    """Find the first word of `text` that differs from `other`.

    If one text is only the beginning of the other, they do not differ (yet).

    Returns:
        Start and end of the word in `text`; `(len(text), len(text))` if there is none.
    """
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), None)
    if same is None:
        return len(text), len(text)
    start = max(text.rfind(" ", 0, same + 1), text.rfind("\n", 0, same + 1)) + 1
    start = min(start, same)
    end = start
    while end < len(text) and (not text[end].isspace() or end <= same):
        end += 1
    return start, end


def texts_placeholder() -> str:
    """Render what stands in place of the texts before the first run."""
    return (
        '<section class="texts empty"><article><h2>Original</h2><p class="text">The original model’s answer '
        'appears here.</p></article><article><h2>Pruned</h2><p class="text">The pruned model’s answer appears '
        "here: press <b>Prune</b>.</p></article></section>"
    )


def sample(prompt: str, text: str, chat: bool = False) -> str:
    """Render what a model writes during its distillation; with `chat`, as the answer to a question."""
    return (
        '<section class="sample"><h3>Current output</h3><p class="text">'
        f"{_prompt(prompt, chat)}{escape(text)}</p></section>"
    )
