package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/devices"
)

// request asks whoever keeps the devices for a certificate.
func request(c *cli.Context, io stdio, csr []byte, until time.Time) (admin.IssuedDevice, *x509.Certificate, *x509.Certificate, error) {
	k := keeperOf(c)
	issued, err := k.AddDevice(c.Context, admin.DeviceRequest{
		Name: c.Args().First(), CSR: csr, Hosts: c.StringSlice("hosts"), Until: until, Admin: c.Bool("admin"),
	})
	if err != nil {
		return issued, nil, nil, err
	}
	k.warnHosts(c, io, issued.Device.Hosts)
	cert, err1 := x509.ParseCertificate(issued.Cert)
	ca, err2 := x509.ParseCertificate(issued.CA)
	return issued, cert, ca, errors.Join(err1, err2)
}

func deviceAddCSR(c *cli.Context, io stdio, until time.Time) error {
	raw, err := os.ReadFile(c.String("csr"))
	if err != nil {
		return usageError("", "--csr: %w", err)
	}
	der, err := pki.DecodeCSR(raw)
	if err != nil {
		return usageError("for example: openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout my.key -subj /CN=me -out my.csr", "--csr %s: %w", c.String("csr"), err)
	}
	_, cert, _, err := request(c, io, der, until)
	if err != nil {
		return err
	}
	if out := c.String("out"); out != "" {
		if err := pki.WriteFile(out, pki.EncodeCert(cert), 0o644); err != nil {
			return takeBack(c, err)
		}
		fmt.Fprintf(io.out, "wrote %s\n%s", out, undoDevice(c))
		return nil
	}
	if _, err = io.out.Write(pki.EncodeCert(cert)); err != nil {
		return takeBack(c, err)
	}
	fmt.Fprint(io.err, undoDevice(c))
	return nil
}

// travels warns where the key is not made on the device that uses it. At home
// that is a way to be sure: no page is involved that the relay could make up.
func (k keeper) travels() string {
	if k.home {
		return "note: the key was made here and has to travel: carry it by hand, not through the relay\n"
	}
	return "warning: the key was made here and has to travel; a link makes it on the device: sallyport device add NAME\n"
}

func deviceAddHere(c *cli.Context, io stdio, until time.Time) error {
	name := c.Args().First()
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return err
	}
	issued, cert, ca, err := request(c, io, csr, until)
	if err != nil {
		return err
	}
	if dir := c.String("pem"); dir != "" {
		keyPEM, err := pki.EncodeKey(key)
		if err != nil {
			return takeBack(c, err)
		}
		base := filepath.Join(dir, issued.Device.Name)
		if err := errors.Join(pki.WriteFile(base+".key", keyPEM, 0o600), pki.WriteFile(base+".crt", pki.EncodeCert(cert), 0o644)); err != nil {
			return takeBack(c, err)
		}
		fmt.Fprintf(io.out, "wrote %s.crt and %s.key\n%s", base, base, undoDevice(c))
		return nil
	}
	password := devices.GeneratePassword()
	pack := devices.PKCS12
	if c.Bool("modern") {
		pack = devices.PKCS12Modern
	}
	p12, err := pack(key, cert, ca, password)
	if err != nil {
		return takeBack(c, err)
	}
	if err := pki.WriteFile(c.String("p12"), p12, 0o600); err != nil {
		return takeBack(c, err)
	}
	if f := c.String("password-file"); f != "" {
		if err := pki.WriteFile(f, []byte(password+"\n"), 0o600); err != nil {
			return takeBack(c, err)
		}
	} else {
		fmt.Fprintln(io.out, password)
	}
	fmt.Fprintf(io.err, "wrote %s; install it on %s, type the password there, then delete the file\n%s%s",
		c.String("p12"), name, keeperOf(c).travels(), undoDevice(c))
	return nil
}

// takeBack revokes what was issued but could not be kept.
func takeBack(c *cli.Context, cause error) error {
	_, err := keeperOf(c).RevokeDevice(c.Context, c.Args().First())
	return errors.Join(fmt.Errorf("%s was added, but the result could not be kept, so it is revoked again: %w", c.Args().First(), cause), err)
}
