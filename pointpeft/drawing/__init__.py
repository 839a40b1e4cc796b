"""Clouds and curves as pictures and on web pages; nothing here knows a model."""
