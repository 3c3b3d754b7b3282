package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/devmapper"
)

// version is set by the linker: -ldflags "-X …/cli.version=v1.2.3". Otherwise the build's own record
// of the module's version is used.
var version string

// versionRecord is what version prints. What the kernel does not tell is null.
type versionRecord struct {
	Version      string  `json:"version"`
	Revision     string  `json:"revision"`
	Go           string  `json:"go"`
	Platform     string  `json:"platform"`
	Kernel       *string `json:"kernel"`
	DeviceMapper *string `json:"deviceMapper"`
}

func (a *app) newVersion() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "Prints the version of dmlayer, of Go, of the kernel and of its device-mapper. Needs no root.",
		Example: "  dmlayer version\n  dmlayer version --format '{{.Version}}'",
		GroupID: groupHelp,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := buildVersion()
			v.Kernel, v.DeviceMapper = known(kernelRelease()), known(deviceMapperVersion())
			return printRecord(a, v, v.Version, false, []field{
				{"Version", v.Version},
				{"Revision", orDash(v.Revision)},
				{"Go", v.Go},
				{"Platform", v.Platform},
				{"Kernel", orUnknown(v.Kernel)},
				{"Device-mapper", orUnknown(v.DeviceMapper)},
			})
		},
	}
	return records(exitCodes(cmd))
}

func buildVersion() versionRecord {
	v := versionRecord{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		if v.Version == "" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	return v
}

// deviceMapperVersion is the version of the kernel's interface, or an error: most often that we are
// not root.
func deviceMapperVersion() (string, error) {
	dm, err := devmapper.Open()
	if err != nil {
		return "", err
	}
	defer dm.Close()
	v, err := dm.Version()
	return v.String(), err
}

func known(s string, err error) *string {
	if err != nil {
		return nil
	}
	return &s
}

func orUnknown(s *string) string {
	if s == nil {
		return "not known"
	}
	return *s
}
