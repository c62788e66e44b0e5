"""Tokenizes prompts: the turns that rows share only once, and for each row only its own part."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retort.teachers.vllm.engine import rendering
else:
    import rendering


class Prefix:
    """Tokenized shared turns. Raises ValueError if the tokenizer's chat template does not accept them."""

    def __init__(self, tokenizer: Any, shared: "rendering.Chat") -> None:
        self._tokenizer, self._shared = tokenizer, shared
        self._chat = rendering.has_chat_template(tokenizer)
        self._text, self._before, self.after = rendering.render(tokenizer, shared)
        self._token_ids = self._beginning(self._text)
        self._parts: bool | None = None

    def prompt(self, item: str, earlier: "rendering.Chat" = ()) -> list[int]:
        """The token ids of a row's whole prompt; `earlier` are its own turns before its last one, `item`.

        The first row is tokenized both in parts and as a whole: if the results differ, because the tokenizer merges
        characters across the boundary, every row's prompt is tokenized as a whole.
        """
        rendered = self._text, self._before, self.after
        own = rendering.row_text(self._tokenizer, self._shared, rendered, earlier, item)
        row = f"{self._before}{own}{self.after}"
        in_parts = self._token_ids + self._tokenizer.encode(row, add_special_tokens=False)
        if self._parts is None:
            self._parts = in_parts == self._beginning(self._text + row)
        return in_parts if self._parts else self._beginning(self._text + row)

    def _beginning(self, text: str) -> list[int]:
        """The token ids of a text that begins a prompt. A chat template has written its own special tokens; otherwise
        the tokenizer adds those that begin a text. One that it adds at the end is removed, since it would end the
        prompt before the completion."""
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=not self._chat)
        if not self._chat:
            end = self._tokenizer.eos_token_id
            bare = self._tokenizer.encode(text, add_special_tokens=False)
            if len(token_ids) > len(bare) and token_ids[-1] == end and bare[-1:] != [end]:
                return token_ids[:-1]
        return token_ids
