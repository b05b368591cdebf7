# SPDX-License-Identifier: Apache-2.0
"""The figures that the README quotes, with the machine that they come from: ``python -m benchmarks``."""
