package metadata

// Repair is a repair of the pool's metadata whose losses are marked, while the repaired metadata is perhaps not in its place yet.
type Repair struct {
	// Metadata is the UUID of the repaired metadata's superblock, in hexadecimal: where the pool's metadata has it, the marks are right.
	Metadata string `json:"metadata"`
	// Before is what the nodes were before they were marked, and are again if the repaired metadata does not come into its place.
	Before []BeforeRepair `json:"before"`
}

// BeforeRepair is what a node was before a repair marked it.
type BeforeRepair struct {
	ID   ThinID `json:"id"`
	Name string `json:"name"`
	Lost *Loss  `json:"lost,omitempty"`
}
