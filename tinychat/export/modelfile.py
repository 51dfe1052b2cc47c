"""Ollama's Modelfile beside a GGUF file. Ollama fills in templates of Go, not the Jinja template that the file holds:
the same conversation has to come out of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinychat.models.generation.sampling import SamplingOptions
from tinychat.text import CHAT_END, CHAT_START, TEMPLATES
from tinychat.text.chat_template import end_ids, template_name

_GO = {
    "chatml": f"""{{{{ range .Messages }}}}{CHAT_START}{{{{ .Role }}}}
{{{{ .Content }}}}{CHAT_END}
{{{{ end }}}}{CHAT_START}assistant
""",
    "instruct": """{{ range .Messages }}{{ if eq .Role "system" }}{{ .Content }}

{{ else if eq .Role "user" }}Instruction: {{ .Content }}{{ else }}
Response: {{ .Content }}END{{ end }}{{ end }}
Response:""",
}
_OWN = (
    "# The chat template in the file is none of tinychat's; Ollama uses one of its own where it knows the file's. If\n"
    "# replies look wrong, write TEMPLATE here (https://github.com/ollama/ollama/blob/main/docs/modelfile.md).\n"
)


def write_modelfile(file: Path, model: str, tokenizer: Any, config: Any) -> None:
    """For the GGUF file `model` beside it. Sampling as tinychat.chat does it, where Ollama's own defaults would narrow
    and penalise."""
    usual = SamplingOptions()
    lines = [
        f"FROM ./{model}",
        f"PARAMETER num_ctx {config.max_position_embeddings}",
        f"PARAMETER temperature {usual.temperature}",
        f"PARAMETER top_k {usual.top_k}",
        f"PARAMETER top_p {usual.top_p}",
        f"PARAMETER repeat_penalty {usual.repetition_penalty}",
    ]
    text = "".join(f"{line}\n" for line in lines)
    if not tokenizer.chat_template:
        text += 'TEMPLATE """{{ .Prompt }}"""\n'
    else:
        for token in end_ids(tokenizer):
            text += f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(token)}"\n'
        go = go_template(tokenizer)
        text += _OWN if go is None else f'TEMPLATE """{go}"""\n'
    file.write_text(text, encoding="utf-8")


def go_template(tokenizer: Any) -> str | None:
    """What Ollama is to fill in, for one of tinychat's own templates; None for another."""
    name = template_name(tokenizer)
    begins = tokenizer.bos_token
    if name not in TEMPLATES or (begins and begins not in (tokenizer.eos_token, CHAT_START)):
        return None
    return _GO[name].replace("END", str(tokenizer.eos_token)) if name == "instruct" else _GO[name]
