# The input document as appliance/core/decide.py makes it: every field, of its type. Anything less is not judged.
package paddock

input_complete if {
	principal_complete
	action_complete
	model_complete
	request_complete
	peer_complete
	time_complete
}

principal_complete if {
	text(input.principal.subject)
	text(input.principal.client_id)
	text(input.principal.issuer)
	texts(input.principal.groups)
	texts(input.principal.models)
	is_array(input.principal.acting)
	every party in input.principal.acting {
		text(party.issuer)
		text(party.subject)
		is_string(party.client_id)
		texts(party.groups)
	}
}

action_complete if {
	text(input.action.operation)
	text(input.action.method)
	text(input.action.route)
}

model_complete if {
	about_no_model
	input.model == null
}

model_complete if {
	not about_no_model
	text(input.model.name)
	text(input.model.digest)
	text(input.model.signer)
	text(input.model.base)
	is_array(input.model.companions)
	every one in input.model.companions {
		text(one.kind)
		text(one.name)
		text(one.digest)
		text(one.signer)
	}
}

request_complete if {
	number_or_null(input.request.max_tokens)
	whole_number(input.request.messages)
	whole_number(input.request.prompt_bytes)
	is_boolean(input.request.stream)
	whole_number(input.request.tools)
	text(input.request.constraint)
	whole_number(input.request.choices)
}

peer_complete if text(input.peer.address)

time_complete if {
	whole_number(input.time.unix_seconds)
	input.time.weekday in numbers.range(0, 6)
	whole_number(input.time.minute_of_day)
	input.time.minute_of_day < 1440
}

text(value) if {
	is_string(value)
	value != ""
}

texts(values) if {
	is_array(values)
	every value in values {
		text(value)
	}
}

whole_number(value) if {
	is_number(value)
	value >= 0
	floor(value) == value
}

number_or_null(null)

number_or_null(value) if whole_number(value)
