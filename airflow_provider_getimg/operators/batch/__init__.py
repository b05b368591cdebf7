# SPDX-License-Identifier: Apache-2.0
"""What goes on inside ``GenerateImagesToS3Operator``: rows, pace, budget, the run itself, and its manifest."""
