package door

// Connections returns how many connections are open at the door now.
func (d *Door) Connections() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.visits)
}
