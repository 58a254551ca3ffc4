package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// startDeadline is how long etcd may take to elect itself before the fixture gives up.
const startDeadline = 60 * time.Second

// etcdCommand serves a single etcd member. It does not sync to disk: the fixture must survive a killed process, never
// a power cut, and every test would otherwise wait for the disk.
func etcdCommand() *cobra.Command {
	var dir, client, peer string
	command := &cobra.Command{
		Use:   "etcd",
		Short: "one etcd member on loopback, without fsync",
		RunE:  func(*cobra.Command, []string) error { return serveEtcd(dir, client, peer) },
	}
	command.Flags().StringVar(&dir, "data-dir", "", "folder of the member's data")
	command.Flags().StringVar(&client, "client", "", "URL for clients")
	command.Flags().StringVar(&peer, "peer", "", "URL for peers")
	for _, flag := range []string{"data-dir", "client", "peer"} {
		if err := command.MarkFlagRequired(flag); err != nil {
			panic(err)
		}
	}
	return command
}

func serveEtcd(dir, client, peer string) error {
	clientURL, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("--client: %w", err)
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("--peer: %w", err)
	}
	config := embed.NewConfig()
	config.Dir = dir
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	// Unset, every request is a slow one.
	config.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer server.Close()

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-server.Server.ReadyNotify():
		fmt.Println("etcd ready")
	case <-stop:
		return nil
	case <-time.After(startDeadline):
		return fmt.Errorf("etcd was not ready after %s", startDeadline)
	}
	select {
	case <-stop:
		return nil
	case err := <-server.Err():
		return err
	}
}
