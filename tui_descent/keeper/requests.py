"""Passes viewers' requests on to the trainer. Each gets exactly one reply: the trainer's, or a rejection from here."""

from __future__ import annotations

from tui_descent.protocol.channel import Peer
from tui_descent.protocol.commands import AnyCommand, ClientRequest, TurnKnob, WatchCurvature, WatchLens, WatchTask
from tui_descent.protocol.events import AnyEvent, CommandDone, CommandRejected, KnobTurned
from tui_descent.telemetry.history import History

MAX_QUEUED_BYTES = 1 << 20


class Requests:
    """Queues requests for the trainer and remembers which have no reply yet. `history` gives the current step."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._unanswered: dict[tuple[int, int], ClientRequest] = {}  # by client and request
        # The clients whose curvature, task or lens view is open, each with the command that ends its readings.
        self._watching: set[tuple[int, AnyCommand]] = set()

    def pass_on(self, order: ClientRequest, link: Peer) -> CommandRejected | None:
        """Queue a request for the trainer. Returns a rejection if the trainer cannot take it."""
        if link.closed:
            return self.reject(order, "the run has ended")
        if link.waiting > MAX_QUEUED_BYTES:
            return self.reject(order, "the trainer has not read the earlier requests yet")
        if isinstance(order.command, WatchCurvature | WatchTask | WatchLens):
            end = order.client, type(order.command)(on=False)
            (self._watching.add if order.command.on else self._watching.discard)(end)
        if order.request:
            self._unanswered[order.client, order.request] = order
        link.queue(order)  # sent at the next flush, so requests made together arrive together
        return None

    def done(self, order: ClientRequest, what: str) -> CommandDone:
        """The reply to a request that the keeper itself has carried out."""
        place = {"segment": self._history.segment, "step": self._history.steps}
        return CommandDone(client=order.client, request=order.request, what=what, **place)

    def reject(self, order: ClientRequest, reason: str) -> CommandRejected:
        """The reply to a request that will not be carried out."""
        return CommandRejected(
            client=order.client,
            request=order.request,
            source=order.source,
            segment=self._history.segment,
            step=self._history.steps,
            knob=order.command.knob[:60] if isinstance(order.command, TurnKnob) else "",
            reason=reason,
        )

    def reject_unanswered(self, reason: str) -> list[CommandRejected]:
        """Rejections of all requests that have no reply yet."""
        return [self.reject(order, reason) for order in self._unanswered.values()]

    def note_reply(self, event: AnyEvent) -> None:
        """Forget the request that this event replies to, if it is a reply."""
        if isinstance(event, KnobTurned | CommandDone | CommandRejected):
            self._unanswered.pop((event.client, event.request), None)

    def cleanup_after(self, client: int) -> list[ClientRequest]:
        """The requests to send to the trainer when this viewer has left: they end the readings made for it."""
        return [
            ClientRequest(client=client, request=0, source="send", command=end)
            for watching, end in self._watching
            if watching == client
        ]
