"""Everything that touches Ray: the cluster, streaming, distributed training, labelling, tuning, scoring, serving.

The only importer of ``ray``. Knows nothing about MLflow, argv or printing.
"""
