package enroll

import (
	"encoding/hex"

	"github.com/sallyport/sallyport/protocol/words"
)

// Words returns the fingerprint of a key (Request.KeyID) as six words, for two
// people who compare two screens. Anything that is no key ID has none.
func Words(keyID string) string {
	raw, err := hex.DecodeString(keyID)
	if err != nil {
		return ""
	}
	return words.Of(raw)
}
