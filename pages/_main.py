"""What every page has: navigation, the look, and the slim line that says what the machine is doing."""

import streamlit as st

from pages._parts import door, guide, status, theme

PAGES = [
    st.Page("launch.py", title="Launch", icon=":material/content_cut:", default=True),
    st.Page("studies.py", title="Studies", icon=":material/account_tree:"),
    st.Page("runs.py", title="Runs", icon=":material/view_list:"),
    st.Page("compare.py", title="Compare", icon=":material/monitoring:"),
    st.Page("anatomy.py", title="Anatomy", icon=":material/park:"),
    st.Page("report.py", title="Report", icon=":material/article:"),
    st.Page("chat.py", title="Chat", icon=":material/forum:"),
]

st.set_page_config(page_title="Espalier", page_icon=theme.icon(), layout="wide")
theme.apply()
door.admit()
page = st.navigation(PAGES, position="top")
status.show()
guide.show(page.title)
page.run()
