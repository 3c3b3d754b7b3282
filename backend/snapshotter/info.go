package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/backend/internal/errclass"
	"github.com/dmlayer/dmlayer/layer"
)

// Stat tells what is known of a snapshot: where its record cannot be read its name, and the label dmlayer/damaged with the reason.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	var info snapshots.Info
	err := checkKey("key", key)
	if err == nil {
		err = s.store.ViewDocuments(ctx, func(tx *layer.DocTx) error {
			d, err := document(tx, key)
			if err == nil {
				info = told(d)
			}
			return err
		})
	}
	return info, errclass.Translated(err)
}

// Update changes labels, which are all that can be changed.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	var r record
	err := errors.Join(checkKey("key", info.Name), checkLabels(info.Labels))
	if err == nil {
		err = s.store.UpdateDocuments(ctx, func(tx *layer.DocTx) (err error) {
			r, err = update(tx, info, fieldpaths)
			return err
		})
	}
	if err != nil {
		return snapshots.Info{}, errclass.Translated(err)
	}
	return r.info(), nil
}

func update(tx documents, info snapshots.Info, fieldpaths []string) (record, error) {
	r, err := get(tx, info.Name)
	if err != nil {
		return r, err
	}
	if err := remove(tx, r); err != nil { // labels lead to it too
		return r, err
	}
	if len(fieldpaths) == 0 {
		fieldpaths = []string{"labels"}
	}
	for _, path := range fieldpaths {
		label, one := strings.CutPrefix(path, "labels.")
		switch {
		case path == "labels":
			r.Labels = maps.Clone(info.Labels)
		case one:
			r.Labels = setLabel(r.Labels, label, info.Labels[label])
		default:
			return r, fmt.Errorf("cannot update %q of snapshot %q: %w", path, info.Name, errdefs.ErrInvalidArgument)
		}
	}
	if err := checkLabels(r.Labels); err != nil {
		return r, err
	}
	r.Updated = time.Now().UTC()
	return r, put(tx, r)
}

// setLabel sets a label, or removes it where the value is empty.
func setLabel(labels map[string]string, key, value string) map[string]string {
	labels = maps.Clone(labels)
	if value == "" {
		delete(labels, key)
		return labels
	}
	if labels == nil {
		labels = map[string]string{}
	}
	labels[key] = value
	return labels
}

// Walk calls fn for each snapshot that passes a filter, as all were at one moment. fn may call the snapshotter. Of one whose
// record cannot be read it is told what Stat tells.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return errclass.Translated(err)
	}
	var found []snapshots.Info
	err = s.store.ViewDocuments(ctx, func(tx *layer.DocTx) (err error) {
		found, err = candidates(tx, fs)
		return err
	})
	if err != nil {
		return errclass.Translated(err)
	}
	for _, info := range found {
		if !filter.Match(adapted(info)) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// candidates returns all snapshots, or fewer where the filters ask for a reference or a name, as containerd does with each layer that it is told of:
// that must not cost more the more snapshots there are.
func candidates(tx documents, fs []string) ([]snapshots.Info, error) {
	var found []snapshots.Info
	if len(fs) == 1 {
		if ref, ok := wanted(fs[0], `labels."`+snapshots.LabelSnapshotRef+`"`); ok {
			records, err := withRef(tx, ref)
			for _, r := range records {
				found = append(found, r.info())
			}
			return found, err
		}
		if name, ok := wanted(fs[0], "name"); ok {
			d, err := document(tx, name)
			if errors.Is(err, errdefs.ErrNotFound) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			return []snapshots.Info{told(d)}, nil
		}
	}
	docs, err := tx.List(kindSnapshot)
	for _, d := range docs {
		found = append(found, told(d))
	}
	return found, err
}

var plainValue = regexp.MustCompile(`^[A-Za-z0-9_:+./-]+$`)

// wanted returns the value that a field must have to pass a filter that begins with that condition.
func wanted(filter, field string) (value string, ok bool) {
	rest, ok := strings.CutPrefix(filter, field+"==")
	if !ok {
		return "", false
	}
	if strings.HasPrefix(rest, `"`) {
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return "", false
		}
		value, err = strconv.Unquote(quoted)
		after := rest[len(quoted):]
		return value, err == nil && (after == "" || after[0] == ',')
	}
	value, _, _ = strings.Cut(rest, ",")
	return value, plainValue.MatchString(value)
}

func adapted(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			return strings.ToLower(info.Kind.String()), true
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			v, ok := info.Labels[strings.Join(slices.Clone(path[1:]), ".")]
			return v, ok
		}
		return "", false
	})
}
