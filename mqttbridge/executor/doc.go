// Package executor is the home's judge of commands, in the agent. It offers the
// owner's actions to the relay, decides alone whether a command runs, publishes
// it at the home broker, and says how it ended.
//
//	e, err := executor.New(executor.Config{
//		Dir: dir, Actions: actions, Broker: client, Offline: isOffline, Agent: "kitchen",
//	})
//	if err != nil { … }            // says what to do
//	defer e.Close()
//	go e.Run(ctx)                  // state topics, acks, pulses
//	err = e.ServeRelay(ctx, conn)  // the stream "commands", once for each session
//
// # What is promised
//
// The relay only carries. Whatever it replays, edits, swaps, delays or makes up,
// a command runs when all of this holds, and then at most once:
//
//   - it is signed by a key that the owner trusted at home for that device
//     (Trust, after the words on both screens were compared). The relay can take
//     that trust away, by saying that it revoked the device, and never give it;
//   - it is for this home, and for an action that the device may use;
//   - it carries a challenge that this process made for this device and action,
//     which was never used and is younger than the action's life. Age is
//     measured by the monotonic clock, and again right before publishing: no
//     wall clock and no word of the relay counts. A restart voids them all;
//   - its PIN is right, where the action asks for one. A device that tries five
//     wrong ones waits 15 minutes, then twice as long each time, up to a day;
//   - its id and the line in the audit log are on disk.
//
// A crash between that record and the outcome ends as mqttbridge.Unknown: it may
// have run, somebody has to look, and nobody tries again by himself.
//
// # What is kept
//
// The directory has mode 0700, its files 0600:
//
//	commands.key  the home's key: PINs are sealed to it, its hash is the home's id
//	trust.json    keys of devices
//	pins.json     hashes of PINs, and who is locked out for how long
//	commands.db   ids that were seen, with their outcomes
//	commands.log  what was asked, who asked, and how it ended; hash-chained (VerifyLog)
//
// # Home Assistant
//
// Home Assistant offers no topics to command its entities. The preset
// homeassistant with the target light.porch publishes at
// sallyport/homeassistant/light/porch/set and expects the state at
// homeassistant/light/porch/state. This in its configuration.yaml makes that
// work for every entity that an action names:
//
//	mqtt_statestream:
//	  base_topic: homeassistant
//	automation:
//	  - alias: sallyport
//	    mode: parallel
//	    triggers:
//	      - trigger: mqtt
//	        topic: sallyport/homeassistant/+/+/set
//	    actions:
//	      - action: "{{ trigger.topic.split('/')[2] }}.{{ trigger.payload }}"
//	        target:
//	          entity_id: "{{ trigger.topic.split('/')[2] }}.{{ trigger.topic.split('/')[3] }}"
package executor
