"""Launch: choose a model and a cut on the left, see what will happen on the right, queue it."""

import streamlit as st

from core.errors import InputError
from core.service import get_service
from pages._parts import launch_copy, launch_doors, launch_form, launch_preview, launch_state, theme

service = get_service()
launch_state.start(service)
launch_copy.take(service)
if launch_doors.first_start(service):
    launch_doors.first(service)
theme.heading("Launch", "Choose a way in, or set the four steps yourself.")
try:
    last_layer = service.architecture(st.session_state["launch_model"] or "").n_layers - 1
except InputError:
    last_layer = launch_state.DEFAULTS["launch_layers"][1]
launch_doors.doors(service, last_layer)
left, right = st.columns([1, 1.05], gap="large")
with left:
    form = launch_form.show(service)
values = launch_state.keep()
with right:
    launch_preview.show(service, form, values)
launch_state.keep()
