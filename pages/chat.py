"""Chat: one prompt, the dense model and a pruned one side by side."""

from pathlib import Path

import streamlit as st

from core.service import get_service
from pages._parts import chat_choose, chat_view, theme

STYLES = Path(__file__).parent / "_parts" / "chat.css"

service = get_service()
st.html(STYLES)
with st.container(key="chat_head", horizontal=True, vertical_alignment="bottom"):
    theme.heading("Chat", "One prompt, two models, both answering at once.")
    sampling = chat_choose.settings()
    st.button(
        "New conversation",
        key="chat_new",
        icon=":material/add_comment:",
        help="Starts over; this conversation stays in the chat folder.",
        on_click=chat_choose.forget,
    )
    st.button(
        "Free memory",
        key="chat_free",
        icon=":material/memory:",
        help="Ends the process that holds the models. The next prompt loads them again.",
        on_click=service.chat_client().close,
    )

chosen = chat_choose.sides(service)
prompt = st.chat_input(
    "Ask both models" if len(chosen) == 2 else "Ask the model",
    key="chat_prompt",
    submit_mode="stop",
    max_chars=20_000,
    disabled=not chosen,
)
if chosen:
    conversation = chat_choose.conversation(service, chosen, sampling)
    chat_view.history(conversation)
    if prompt:
        chat_view.answer(conversation, prompt)
    elif not conversation.turns:
        chat_view.empty(len(chosen))
