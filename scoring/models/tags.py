"""Names of the tags of a model version that configure how it is served."""

FEATURE_SERVICE_TAG = "feast.feature_service"
REQUEST_INPUTS_TAG = "serving.request_inputs"
OVERRIDABLE_TAG = "serving.overridable"
OUTPUT_COLUMN_TAG = "serving.output_column"
OUTPUTS_TAG = "serving.outputs"
RANK_BY_TAG = "serving.rank_by"
