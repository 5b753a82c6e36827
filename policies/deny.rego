# Why not. Each rule stands over a negated positive helper, so that a missing field or missing data denies.
package paddock

deny contains "input-incomplete" if not input_complete

deny contains "operation-unknown" if not operation_known

deny contains "subject-closed" if not subject_open

deny contains "delegation-not-permitted" if not delegation_permitted

deny contains "model-closed" if not model_open

deny contains "model-outside-token" if not token_covers_model

deny contains "no-group-permits-model" if not model_permitted

deny contains "no-group-permits-metrics" if {
	asks_metrics
	not metrics_permitted
}

deny contains "no-group-permits-description" if {
	asks_description
	not description_permitted
}
