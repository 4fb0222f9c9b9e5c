"""The screen of `pyvtep top`: a shell of textual around `vtep.top.view`.

The lines of the view are drawn as they are, and only those that have changed: over ssh, a second
costs as few octets as possible. A DataTable would cost more with each row that it has.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, TypeAlias

from rich.segment import Segment
from rich.style import Style as RichStyle
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Static

from vtep.control.schema import FdbSample, Status
from vtep.errors import VtepError
from vtep.top.macs import MacRequest
from vtep.top.model import Model
from vtep.top.tables import TABLES
from vtep.top.view import HEAD_LINES, KEYS, NOTE_LINES, Line, Style

Poll: TypeAlias = Callable[[MacRequest | None], tuple[Status, FdbSample | None]]

_STYLES: Final = {
    Style.PLAIN: RichStyle(),
    Style.TITLE: RichStyle(bold=True),
    Style.ALERT: RichStyle(color="red", bold=True),
    Style.HEADING: RichStyle(underline=True, bold=True),
    Style.CURSOR: RichStyle(reverse=True),
    Style.DIM: RichStyle(dim=True),
}
"""Attributes and the colours of the terminal: they are readable with any of its themes, and
without colours."""

_WHEEL_ROWS: Final = 3
_LONG_WAY: Final = 1 << 30


class LinesWidget(Widget):
    """The lines of a view, over the whole screen."""

    can_focus = True

    def __init__(self) -> None:
        super().__init__()
        self._lines: Sequence[Line] = ()

    def put(self, lines: Sequence[Line]) -> None:
        """Show lines. Side effect: draws those that have changed."""
        before, self._lines = self._lines, lines
        if len(before) != len(lines):
            self.refresh()
            return
        changed = [y for y, (old, new) in enumerate(zip(before, lines, strict=True)) if old != new]
        if changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        """Return a line for textual."""
        width = self.size.width
        line = self._lines[y] if y < len(self._lines) else Line("")
        strip = Strip([Segment(line.text, _STYLES[line.style])])
        return strip.adjust_cell_length(width, _STYLES[line.style])


class HelpScreen(ModalScreen[None]):
    """The keys. Any key closes it."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen Static { width: 76; height: auto; border: round; padding: 0 1; }
    """

    def compose(self) -> ComposeResult:
        """Yield the text."""
        lines = [f"{keys:24}{meaning}" for keys, meaning in KEYS]
        units = (
            "",
            "Rates are per second: fr frames, sf superframes. /c: frames a system call.",
            "- is unknown: a rate needs two answers. For scripts: pyvtep top -b",
        )
        yield Static("\n".join((*lines, *units)), markup=False)

    def on_key(self, event: events.Key) -> None:
        """Close the help."""
        event.stop()
        self.dismiss()


class TopApp(App[None]):
    """The application. `poll` is called in a thread each `interval` seconds; None: by tests."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    LinesWidget { height: 100%; }
    Input { dock: bottom; height: 1; border: none; padding: 0; display: none; }
    Input.shown { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(kind[0], f"table('{kind}')") for kind in TABLES),
        Binding("enter", "enter"),
        Binding("escape", "go_back"),
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", "page(-1)"),
        Binding("pagedown", "page(1)"),
        Binding("home,g", f"move({-_LONG_WAY})"),
        Binding("end,G", f"move({_LONG_WAY})"),
        Binding("s", "sort_by(1)"),
        Binding("S", "sort_by(-1)"),
        Binding("o", "reverse"),
        Binding("slash", "filter"),
        Binding("b", "bits"),
        Binding("p,space", "pause"),
        Binding("question_mark,h", "help"),
        Binding("q,ctrl+c", "quit", priority=False),
    ]

    def __init__(self, model: Model, poll: Poll, interval: float | None = 1.0) -> None:
        super().__init__(ansi_color=True)
        self.model = model
        self._poll = poll
        self._interval = interval
        self._is_polling = False

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        yield LinesWidget()
        yield Input(placeholder="text of the rows to show", compact=True)

    async def on_mount(self) -> None:
        """Begin to poll."""
        self.query_one(LinesWidget).focus()
        if self._interval is not None:
            self.set_interval(self._interval, self._tick)
            self._tick()

    def _tick(self) -> None:
        # While an answer is late there is no second request.
        if not (self._is_polling or self.model.view.is_paused):
            self.run_worker(self.poll_once())

    async def poll_once(self) -> None:
        """Ask the VTEP in a thread, and show its answer."""
        self._is_polling = True
        try:
            asked = self.model.request()
            status, sample = await asyncio.to_thread(self._poll, asked)
        except VtepError as error:
            self.model.fail(str(error))
        else:
            self.model.take(status, asked, sample)
        finally:
            self._is_polling = False
        self.draw()

    def draw(self) -> None:
        """Show the view as it is now."""
        size = self.size
        for widget in self.screen_stack[0].query(LinesWidget):
            widget.put(self.model.view.lines(size.width, size.height))

    def on_resize(self) -> None:
        """Show as many rows as fit."""
        self.draw()

    # --- keys and the mouse -----------------------------------------------------------------

    def action_table(self, kind: str) -> None:
        """Show a table."""
        self.model.view.show(TABLES[kind])
        self._ask_for_macs()

    def action_enter(self) -> None:
        """Show more about the row under the cursor."""
        self.model.view.enter()
        self._ask_for_macs()

    def _ask_for_macs(self) -> None:
        """Ask for the MACs at once if they are shown from now on."""
        if self.model.view.vni_of_macs is not None and self._interval is not None:
            self._tick()
        self.draw()

    def action_go_back(self) -> None:
        """Clear the filter, or go back."""
        self.model.view.back()
        self.draw()

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.model.view.move(rows)
        self.draw()

    def action_page(self, pages: int) -> None:
        """Move the cursor by screens."""
        self.action_move(pages * max(1, self.size.height - HEAD_LINES - NOTE_LINES - 1))

    def action_sort_by(self, step: int) -> None:
        """Sort by another column."""
        self.model.view.sort_by(step)
        self.draw()

    def action_reverse(self) -> None:
        """Reverse the order."""
        self.model.view.reverse()
        self.draw()

    def action_bits(self) -> None:
        """Show bits or octets."""
        self.model.view.is_in_bits = not self.model.view.is_in_bits
        self.draw()

    def action_pause(self) -> None:
        """Stop polling, or go on."""
        self.model.view.is_paused = not self.model.view.is_paused
        self.draw()

    async def action_help(self) -> None:
        """Show the keys."""
        await self.push_screen(HelpScreen())

    def action_filter(self) -> None:
        """Edit the filter, which applies while it is typed."""
        field = self.query_one(Input)
        field.value = self.model.view.wanted
        field.add_class("shown")
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the filter."""
        if event.input.has_class("shown"):
            self.model.view.wanted = event.value
            self.model.request()  # MACs that are known already are found at once.
            self.draw()

    def on_input_submitted(self) -> None:
        """Keep the filter, and go back to the rows."""
        self._end_input()

    def on_key(self, event: events.Key) -> None:
        """Leave the filter without it."""
        field = self.query_one(Input)
        if event.key == "escape" and field.has_class("shown"):
            event.stop()
            event.prevent_default()
            self._end_input()
            self.model.view.wanted = ""
            self.draw()

    def _end_input(self) -> None:
        self.query_one(Input).remove_class("shown")
        self.query_one(LinesWidget).focus()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on a row."""
        self.model.view.point(event.screen_y - HEAD_LINES)
        self.draw()

    def on_mouse_scroll_up(self) -> None:
        """Move the cursor up."""
        self.action_move(-_WHEEL_ROWS)

    def on_mouse_scroll_down(self) -> None:
        """Move the cursor down."""
        self.action_move(_WHEEL_ROWS)
