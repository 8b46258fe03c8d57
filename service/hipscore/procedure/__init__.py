"""Unified Procedure Steps (PS3.4 CC): states, rules, searching, and what our own look like.

A work item is a data set in the DICOM JSON model (PS3.18 F), kept as it is: a mapping of tags
in eight hexadecimal digits to ``{"vr": …, "Value": […]}``. Everything here is a pure function of
such mappings.
"""
