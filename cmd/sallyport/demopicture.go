package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// picture is what runs where, and lines to type. proxy is what MQTT programs
// need to find the relay.
func (w *demoWorld) picture(password, link, proxy string) string {
	_, port, _ := net.SplitHostPort(w.addr)
	relay := fmt.Sprintf("%-37s", "relay on "+w.addr+", TCP and UDP") // as wide as what stands below it
	r := strings.NewReplacer("{relay}", relay, "{dir}", quoted(w.dir), "{port}", port, "{addr}", w.addr, "{self}", self(), "{pw}", password, "{link}", link,
		"{web}", w.apps.web.Addr().String(), "{echo}", w.apps.echo.Addr().String(), "{broker}", w.home.addr, "{pin}", demoPIN,
		"{mqtt}", "-h mqtt."+demoDomain+" -p "+port+proxy+" --cafile "+quoted(w.rootFile())+
			" --cert "+quoted(filepath.Join(w.dir, "phone", "phone.crt"))+" --key "+quoted(filepath.Join(w.dir, "phone", "phone.key")),
		"{home}", "home/"+demoHomeName+"/", "{domain}", demoDomain)
	return r.Replace(`
you, the device            {relay} home (no port open)
  curl, browser,   ─TLS─►    web.{domain}   ─┐
  connect,        + cert     echo.{domain}  ─┼◄═QUIC═ agent ─┬► web   http://{web}
  command,                   home.{domain}  ─┤               ├► echo  tcp://{echo}
  mosquitto                  mqtt.{domain}  ─┘               └► MQTT  tcp://{broker}, a garage door
                             any other name: TLS alert

with the certificate (the live clock ends with Ctrl-C):
  curl --cacert {dir}/ca.pem --cert {dir}/phone/phone.crt --key {dir}/phone/phone.key https://web.{domain}:{port}/
  curl --cacert {dir}/ca.pem --cert {dir}/phone/phone.crt --key {dir}/phone/phone.key -N https://web.{domain}:{port}/clock
  printf 'hello\n' | {self} connect --device {dir}/phone echo.{domain}
press the button (the phone's key for it was compared at home and accepted for you; the PIN is {pin}):
  {self} command --device {dir}/phone --list
  {self} command --device {dir}/phone --pin-file {dir}/pin garage
MQTT to the relay: a note to the home, and what the notice board there shows (-C 1: one message, then it ends):
  mosquitto_pub {mqtt} -i phone-pub -q 1 -t {home}notes/phone -m 'buy milk'
  mosquitto_sub {mqtt} -i phone-sub -q 1 -t '{home}board/#' -v -C 1
without the certificate the handshake fails:
  curl --cacert {dir}/ca.pem https://web.{domain}:{port}/
browser: import {dir}/ca.pem as an authority and make it a device with this link, which works once
  {link}
or import {dir}/browser.p12 (password {pw}), then open
  https://web.{domain}:{port}/
  https://home.{domain}:{port}/
there is the button; the browser's key for it waits at home until you accept it by its name:
  {self} agent trust --data {dir}/agent
look, and take the certificate back:
  {self} status --data {dir}/relay
  {self} status --data {dir}/agent
  {self} agent log --data {dir}/agent
  {self} device revoke phone --data {dir}/relay

Ctrl-C ends it and removes {dir}
`)
}

// self is how a person calls this program again from the same directory.
func self() string {
	exe, err := os.Executable()
	switch {
	case err == nil && strings.Contains(exe, "go-build"):
		return "go run ./cmd/sallyport"
	case strings.ContainsRune(os.Args[0], filepath.Separator):
		return quoted(os.Args[0])
	}
	return "sallyport"
}
