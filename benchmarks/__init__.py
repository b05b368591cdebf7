# SPDX-License-Identifier: Apache-2.0
"""The figures that the README quotes, and the machine that produced them: ``python -m benchmarks``."""
