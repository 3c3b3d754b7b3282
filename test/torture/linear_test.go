package torture_test

import "testing"

// TestLinear shows that the search finds an order where there is one, and none where there is none.
func TestLinear(t *testing.T) {
	at := func(begin, end int64, do, result string, value uint64) event {
		return event{Node: "n", Do: do, Result: result, Value: value, Begin: begin, End: end}
	}
	for _, c := range []struct {
		name   string
		events []event
		want   bool
	}{
		{"one after the other", []event{at(0, 1, "create", "ok", 5), at(2, 3, "look", "ok", 5), at(4, 5, "remove", "ok", 0), at(6, 7, "look", "notfound", 0)}, true},
		{"two create at once, one of them comes first", []event{at(0, 9, "create", "exists", 5), at(1, 8, "create", "ok", 6), at(10, 11, "look", "ok", 6)}, true},
		{"both create", []event{at(0, 9, "create", "ok", 5), at(1, 8, "create", "ok", 6)}, false},
		{"both create, one removes between them", []event{at(0, 9, "create", "ok", 5), at(1, 8, "create", "ok", 6), at(2, 7, "remove", "ok", 0)}, true},
		{"an old label is seen", []event{at(0, 1, "create", "ok", 5), at(2, 3, "label", "ok", 6), at(4, 5, "look", "ok", 5)}, false},
		{"an old label is seen meanwhile", []event{at(0, 1, "create", "ok", 5), at(2, 5, "label", "ok", 6), at(3, 4, "look", "ok", 5)}, true},
		{"it is gone and nobody removed it", []event{at(0, 1, "create", "ok", 5), at(2, 3, "look", "notfound", 0)}, false},
		{"busy without a node", []event{at(0, 1, "remove", "busy", 0)}, false},
	} {
		if err := linear(c.events); (err == nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
