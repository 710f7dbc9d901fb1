package admin

import "strings"

// softwareName makes "Safari on an iPhone" of what a browser says about
// itself, as far as it says so in a known way. Anybody can claim anything
// there: it helps a person to recognise a device, and decides nothing.
func softwareName(agent string) string {
	system := first(agent, []known{
		{"iPhone", "an iPhone"},
		{"iPad", "an iPad"},
		{"Android", "Android"},
		{"CrOS", "ChromeOS"},
		{"Macintosh", "a Mac"},
		{"Windows", "Windows"},
		{"Linux", "Linux"},
	})
	// The order matters: nearly all of them also say Chrome and Safari.
	program := first(agent, []known{
		{"Edg", "Edge"},
		{"OPR/", "Opera"},
		{"SamsungBrowser", "Samsung Internet"},
		{"Firefox/", "Firefox"},
		{"FxiOS", "Firefox"},
		{"CriOS", "Chrome"},
		{"Chrome/", "Chrome"},
		{"Safari/", "Safari"},
	})
	switch {
	case system != "" && program != "":
		return program + " on " + system
	case strings.HasPrefix(agent, "Mozilla/") && system != "":
		return "a browser on " + system
	}
	return agent // a program that says its name plainly
}

type known struct{ sign, name string }

func first(text string, list []known) string {
	for _, k := range list {
		if strings.Contains(text, k.sign) {
			return k.name
		}
	}
	return ""
}
