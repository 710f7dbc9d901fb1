//go:build !unix

package queue

func isReadOnly(error) bool { return false }

func isFull(error) bool { return false }
