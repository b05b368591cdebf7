# SPDX-License-Identifier: Apache-2.0
"""Paying once: what was requested and billed, across the tries of a task."""
