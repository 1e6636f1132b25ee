"""Chat: one prompt, two to four models side by side. The same page, large and bare, is the stage for a projector."""

from pathlib import Path

import streamlit as st

from core.service import get_service
from pages._parts import chat_choose, chat_keep, chat_place, chat_settings, chat_stage, chat_view, theme

STYLES = Path(__file__).parent / "_parts" / "chat.css"

service = get_service()
st.html(STYLES)
stage = chat_stage.on()
replay = chat_stage.replaying()
if stage:
    chat_stage.dress()
with st.container(key="chat_head", horizontal=True, vertical_alignment="bottom"):
    if not stage:
        theme.heading("Chat", "One prompt, two to four models, all answering at once.")
    settings = chat_settings.show()
    blind = chat_settings.blind()
    chat_stage.switch()
    chat_keep.menu(service)

if replay is not None:
    chat_stage.play(service, replay)
    st.stop()

with st.container(key="chat_sides", horizontal=stage, vertical_alignment="center"):
    chosen = chat_choose.sides(service, compact=stage or blind, bare=stage)
    prepare = chat_stage.bar(service, chosen) if stage else False
held = chat_place.says(service, chosen)
if stage:
    chat_stage.readiness(service, chosen, prepare=prepare)
typed = st.chat_input(
    "Ask the model" if len(chosen) == 1 else f"Ask {'both' if len(chosen) == 2 else 'all'} models",
    key="chat_prompt",
    max_chars=20_000,
    disabled=not chosen,
)
prompt = typed or chat_keep.taken()
if chosen:
    conversation = chat_choose.conversation(service, chosen, settings)
    conversation.blind, conversation.hold = blind, held
    if prompt:
        chat_keep.ask(conversation, prompt)
    before = st.empty()  # drawn before what streams, so that nothing old stays in sight meanwhile
    if not conversation.turns:
        with before.container():
            chat_keep.start(service, chosen, stage=stage)
    chat_view.show(service, conversation)
