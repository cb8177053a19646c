"""A small Gradio page on which a visitor signs in and acts: python -m tests.helpers.signing_in KEY CERTIFICATE PORT.

It writes who acted to the file `ACTED`. With `GATE=no` it does without the page's middleware.
"""

import os
import sys
from pathlib import Path

import gradio as gr

ACTED = Path(os.environ.get("ACTED", "acted.txt"))


def act(session: str, token: gr.OAuthToken | None) -> str:
    """Do something in the visitor's name."""
    with ACTED.open("a") as file:
        file.write(f"{session} {token.token if token else 'nobody'}\n")
    return f"acted as {token.token if token else 'nobody'}"


def main() -> None:
    """Serve the page until the process ends."""
    key, certificate, port = sys.argv[1:]
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.LoginButton(elem_id="sign-in")
        session, button, answer = (
            gr.Textbox("page"),
            gr.Button("Act", elem_id="act"),
            gr.Textbox(elem_id="answer"),
        )
        button.click(act, session, answer, api_name="act")
    settings = {}
    if os.environ.get("GATE") != "no":
        from page.server.middleware import request_middleware

        settings["app_kwargs"] = {"middleware": request_middleware(demo)}
    demo.queue().launch(
        server_name="127.0.0.1",
        server_port=int(port),
        ssl_keyfile=key,
        ssl_certfile=certificate,
        ssl_verify=False,
        ssr_mode=False,
        **settings,
    )


if __name__ == "__main__":
    main()
