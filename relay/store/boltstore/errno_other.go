//go:build !unix

package boltstore

func isReadOnly(error) bool { return false }

func isFull(error) bool { return false }
