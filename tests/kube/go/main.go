// Command kube-fixture holds a real etcd, a real kube-apiserver and kubectl in one binary.
//
// The first argument picks the component; what follows is that component's own command line:
//
//	kube-fixture etcd --data-dir DIR --client URL --peer URL
//	kube-fixture kube-apiserver ...
//	kube-fixture kubectl ...
//
// Started under one of these names (through a symbolic link), it behaves as that component. One binary instead of
// three, because they share most of their packages and linking each of them costs half a minute.
//
// With KUBE_FIXTURE_PARENT=stdin in the environment, a component ends when its standard input is closed: whoever started
// it takes it along, however it dies.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// components maps a component's name to what runs it; each returns the exit status of the process.
var components = map[string]func() int{
	"etcd":           func() int { return cli.Run(etcdCommand()) },
	"kube-apiserver": func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kubectl":        runKubectl,
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, linked := components[name]; !linked {
		if len(os.Args) < 2 {
			usage()
		}
		name = os.Args[1]
		// The components read os.Args themselves and expect their own name first.
		os.Args = os.Args[1:]
	}
	run, known := components[name]
	if !known {
		usage()
	}
	if os.Getenv("KUBE_FIXTURE_PARENT") == "stdin" {
		go endWithParent()
	}
	os.Exit(run())
}

// endWithParent waits for the end of standard input, which its owner never writes to, and then stops this process.
func endWithParent() {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "kube-fixture: standard input:", err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		os.Exit(1)
	}
}

func runKubectl() int {
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		// CheckErr prints the error the way kubectl does and ends the process.
		kubectlutil.CheckErr(err)
	}
	return 0
}

func usage() {
	names := make([]string, 0, len(components))
	for name := range components {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintf(os.Stderr, "usage: kube-fixture {%s} ...\n", strings.Join(names, "|"))
	os.Exit(2)
}
