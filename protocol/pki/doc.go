// Package pki makes keys and certificates: for devices, for agents, and for
// servers of the internal CA. The authority may live at the relay or at home,
// so the package knows neither.
//
// A certificate's subject, names, usage and dates come from a [Grant], which
// the owner's side writes. From a signing request only the public key is
// taken (DESIGN §6.12).
//
//	ca, err := pki.LoadOrCreate("/var/lib/sallyport/relay/ca", "device")
//	pub, err := pki.ParseCSR(der)
//	cert, err := ca.Issue(pub, pki.Grant{Profile: pki.Device, Name: "anna-phone", NotAfter: end})
//	der, err = ca.RevocationList(revoked, number, now, now.Add(week))
//
// An authority whose files are damaged is never replaced silently: a new one
// would lock out every device. [LoadOrCreate] makes one only where no trace of
// an old one exists, and otherwise says what to do.
package pki
