"""Tab completion of `python -m tinychat.train` in bash. Hydra's own completes `python FILE.py` and programs alone."""

from __future__ import annotations

from collections.abc import Sequence

_FLAGS = ("--shell-completion", "-sc")
# Other lines that begin with python keep bash's own completion of files. `=` parts words for readline, as
# COMP_WORDBREAKS says, so what stands before it is taken off the answers.
_INSTALL = r"""
_tinychat_completion()
{
    local line="${COMP_LINE:0:COMP_POINT}" choices word reply
    COMPREPLY=()
    [[ "$line" =~ ^([^[:space:]]+[[:space:]]+-m[[:space:]]+tinychat\.train)[[:space:]]+(.*)$ ]] || return 0
    local program="${BASH_REMATCH[1]}" rest="${BASH_REMATCH[2]}"
    choices=$(COMP_LINE="tinychat.train $rest" $program --shell-completion query=bash 2>/dev/null)
    word="${rest##*[[:space:]]}"
    for reply in $(compgen -W "$choices" -- "$word"); do
        [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]] && reply="${reply#"${word%"${word##*=}"}"}"
        COMPREPLY+=("$reply")
    done
}
complete -o nospace -o bashdefault -o default -F _tinychat_completion python python3
"""
_UNINSTALL = """
complete -r python python3 2>/dev/null
unset -f _tinychat_completion
"""


def script(arguments: Sequence[str]) -> str | None:
    """What `eval "$(python -m tinychat.train --shell-completion install=bash)"` runs, or its undoing; None for any
    other command line: Hydra answers the questions of that script, and has those of other shells."""
    if not any(flag in arguments for flag in _FLAGS):
        return None
    if "install=bash" in arguments:
        return _INSTALL
    return _UNINSTALL if "uninstall=bash" in arguments else None
