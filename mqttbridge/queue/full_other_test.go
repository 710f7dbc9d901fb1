//go:build !linux

package queue

const limitedEnv = "QUEUE_TEST_LIMITED"

func writeUntilFull(string) {}
