# SPDX-License-Identifier: Apache-2.0
"""Many requests in, saved objects out."""
