"""Who may see pages where ESPALIER_USERS is set: people whom Streamlit's login knows, and the list names."""

import streamlit as st

from core.errors import InputError
from core.guard import Rules
from pages._parts import theme


def admit() -> None:
    """Go on for those who may enter; for others this is the whole page."""
    try:
        rules = Rules.from_environment()
    except InputError as error:
        st.html(theme.note(str(error), level="error"))
        st.stop()
    if not rules.users:
        return
    if not st.user.is_logged_in:
        theme.heading("Espalier", "This workbench is for people it knows.")
        st.button("Log in", key="login", type="primary", icon=":material/login:", on_click=st.login)
        st.stop()
    email = st.user.get("email")
    if not rules.admits(email, st.user.get("email_verified")):
        theme.heading("Espalier", f"{email or 'This account'} is not on the list of this workbench (ESPALIER_USERS).")
        st.button("Log out", key="logout", icon=":material/logout:", on_click=st.logout)
        st.stop()
