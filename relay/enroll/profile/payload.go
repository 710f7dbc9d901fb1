package profile

import (
	"crypto/sha1"
	"crypto/x509"
	"fmt"
	"maps"
)

// A dict is one of Apple's dictionaries. The keys are theirs ("Device
// Management", profile-specific payload keys).
type dict map[string]any

const (
	rsaBits = 2048

	// The key signs in TLS and decrypts the answer of SCEP.
	usageSign    = 1
	usageEncrypt = 4

	// An owner who has to approve has half an hour: the device asks every ten
	// seconds while it shows "installing", and forgets the key when it gives up.
	retryDelay = 10 // seconds
	retries    = 180
)

// payload is the profile or one part of it: what they all have, and more.
func (cfg Config) payload(kind, suffix, name string, more dict) dict {
	p := dict{
		"PayloadType":        kind,
		"PayloadVersion":     1,
		"PayloadIdentifier":  cfg.Identifier + suffix,
		"PayloadUUID":        newUUID(),
		"PayloadDisplayName": name,
	}
	maps.Copy(p, more)
	return p
}

func (cfg Config) document() dict {
	content := []dict{cfg.scep(), cfg.deviceCA()}
	for i, root := range cfg.Roots {
		content = append(content, cfg.root(i+1, root))
	}
	for i, clip := range cfg.WebClips {
		content = append(content, cfg.webClip(i+1, clip))
	}
	return cfg.payload("Configuration", "", cfg.Organization, dict{
		"PayloadOrganization": cfg.Organization,
		"PayloadDescription": fmt.Sprintf("Lets %s visit %s. Its key is made on this device and never leaves it. "+
			"To take it back, remove this profile and tell the owner.", cfg.Name, cfg.Organization),
		"PayloadContent": content,
	})
}

func (cfg Config) scep() dict {
	return cfg.payload("com.apple.security.scep", ".scep", "Certificate of "+cfg.Name, dict{
		"PayloadContent": dict{
			"URL":                cfg.SCEPURL,
			"Subject":            [][][]string{{{"CN", cfg.Name}}}, // for show: the relay names the device
			"Challenge":          cfg.Challenge,
			"Key Type":           "RSA",
			"Keysize":            rsaBits,
			"Key Usage":          usageSign | usageEncrypt,
			"Retries":            retries,
			"RetryDelay":         retryDelay,
			"CAFingerprint":      fingerprint(cfg.CA),
			"AllowAllAppsAccess": false,
			"KeyIsExtractable":   false,
		},
	})
}

// deviceCA carries the CA that certifies the device. "pkcs1" keeps a
// certificate, "root" asks to trust it for websites too: this CA must never
// vouch for a website.
func (cfg Config) deviceCA() dict {
	return cfg.payload("com.apple.security.pkcs1", ".ca", "Device CA of "+cfg.Organization, dict{
		"PayloadCertificateFileName": "device-ca.cer",
		"PayloadContent":             cfg.CA.Raw,
	})
}

func (cfg Config) root(n int, cert *x509.Certificate) dict {
	return cfg.payload("com.apple.security.root", fmt.Sprintf(".root%d", n), "Website CA of "+cfg.Organization, dict{
		"PayloadCertificateFileName": fmt.Sprintf("root-%d.cer", n),
		"PayloadContent":             cert.Raw,
	})
}

func (cfg Config) webClip(n int, clip WebClip) dict {
	more := dict{
		"Label":       clip.Label,
		"URL":         clip.URL,
		"IsRemovable": true,
		"FullScreen":  clip.FullScreen,
		"Precomposed": true,
	}
	if len(clip.Icon) > 0 {
		more["Icon"] = clip.Icon
	}
	return cfg.payload("com.apple.webClip.managed", fmt.Sprintf(".clip%d", n), clip.Label, more)
}

// fingerprint is that of the CA which GetCACert must answer. Apple's devices
// know SHA-1 and MD5 here. To pass another CA off for ours takes a second
// preimage, which SHA-1 still withstands, and TLS comes before it.
func fingerprint(ca *x509.Certificate) []byte {
	sum := sha1.Sum(ca.Raw)
	return sum[:]
}
