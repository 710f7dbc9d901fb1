// Package mqttbridge holds the words that the relay's and the home's half of
// MQTT share: topics and rules, commands and their states, and the frames on
// the two streams between them. The halves are packages of their own:
//
//	hub       the broker at the relay
//	dispatch  at the relay: the ledger of commands, carried to the homes
//	panel     the phone's command page, in front of dispatch
//	bridge    at home: joins the hub and the home broker
//	executor  at home: judges commands and runs them
//	queue     the durable queue that hub and bridge keep messages in
package mqttbridge
