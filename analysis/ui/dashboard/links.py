"""Links to the dashboard's pages. This file does not import Streamlit, so that commands can print links."""

from urllib.parse import urlencode

ADDRESS, PORT = "127.0.0.1", 8501  # default address and port of `python main.py dashboard`


def page_link(page: str, **query: object) -> str:
    """The address of a page, which is the name of a file in screens/. `query` may have run, member and feature."""
    return f"http://{ADDRESS}:{PORT}/{page}?{urlencode(query)}"
