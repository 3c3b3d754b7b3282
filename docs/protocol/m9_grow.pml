/* M9: growth of a pool's metadata, by two processes, against deletions that add what is held of it, stop and start, commands, and a
 * service that has writers wait for room.  Any of them may die anywhere, once the kernel fails a resume.  Sizes are in units.
 * The kernel keeps the size that the pool has taken (sm) for ever: a table that is shorter is refused, and leaves it suspended. */
#ifndef OPS
#define OPS 1
#endif
#ifndef KILLS
#define KILLS 1
#endif
#define MAX 8
byte dev = 4, held = 1;                  /* the device; the part of it that is outside the table, as recorded */
byte lin = 3, sm = 3;                    /* the linear device that the table names; what the pool has taken */
bit up = 1, susp, waits, serving;       /* of the pool: runs, is suspended, has writers wait; the lock of the service */
byte shared; bit excl, grow;             /* start/stop lock, grow lock */
byte kills, kfail, ended;

#define STEP if :: skip :: kills < KILLS -> kills++; goto dead fi
#ifdef M_NOSTOPLOCK                      /* tables change without the start/stop lock */
#define LOCKS skip
#else
#define LOCKS atomic { !excl -> shared++; s = 1 }
#endif
#define UNLOCKS if :: s -> shared--; s = 0 :: else fi
#ifdef M_NOGROWLOCK
#define LOCKG skip
#else
#define LOCKG atomic { !grow -> grow = 1; g = 1 }
#endif
#define UNLOCKG if :: g -> grow = 0; g = 0 :: else fi
#define LOCKX atomic { !excl && shared == 0 -> excl = 1; x = 1 }
#define UNLOCKX if :: x -> excl = 0; x = 0 :: else fi

/* load and resume, in one call: the kernel takes the table, refuses it, or fails once for a reason of its own */
inline reload(n, w) {
  atomic { assert(up); assert(n <= dev); assert(n >= sm);
           if :: sm = n; waits = w; susp = 0 :: kfail == 0 -> kfail = 1; susp = 1 fi };
  STEP;
  atomic { if :: susp -> susp = 0 :: else fi }                  /* the old table is put back */
}
inline refit(w) {
  t = dev - held; if :: t < lin -> t = lin :: else fi;
  STEP;
  lin = t; STEP;
  if :: t != sm || susp || waits != w -> reload(t, w) :: else fi
}
inline start() {
  LOCKX;
  if :: !up ->
       t = dev - held;
#ifndef M_HELD_RECORDED                  /* what is recorded as held is believed */
       if :: t < sm -> t = sm :: else fi;
#endif
       STEP;
       assert(t >= sm && t <= dev);                             /* or the kernel does not start it any more */
       lin = t; sm = t; susp = 0; waits = 0; up = 1
  :: else fi;
  UNLOCKX
}
inline extend() {
  LOCKS; LOCKG;
  if :: up && dev < MAX ->
       n = dev + 2;
#ifdef M_TABLE_FIRST
       lin = n - held; reload(n - held, waits);
#endif
       if :: held == 0 -> held = 1 :: held == 1 -> held = 2 :: else fi;
       STEP;
       dev = n; STEP;
       refit(waits)
  :: else fi;
  UNLOCKG; UNLOCKS
}
inline delete() {
  LOCKS; LOCKG;
  if :: up && held > 0 -> held--; STEP; refit(waits) :: else fi;
  UNLOCKG; UNLOCKS
}
inline stop() { LOCKX; up = 0; susp = 0; waits = 0; lin = 0; UNLOCKX }
inline command() {
  LOCKS;
  if :: up ->
#ifndef M_NOWAKE
       if :: susp -> LOCKG; if :: susp -> refit(waits) :: else fi; UNLOCKG :: else fi;
#endif
#ifndef M_NOSETTLE
       if :: waits && !serving -> LOCKG; if :: waits && !serving -> refit(0) :: else fi; UNLOCKG :: else fi;
#endif
       UNLOCKS
  :: else -> UNLOCKS; start()
  fi
}
proctype P() {
  bit s, g, x; byte t, n, ops;
  do
  :: ops == OPS -> break
  :: ops < OPS -> ops++; if :: extend() :: delete() :: stop() :: command() fi
  od;
dead:
  UNLOCKG; UNLOCKS; UNLOCKX; ended++
}
proctype Service() {
  bit s, g, x; byte t, n;
  serving = 1; STEP;
  LOCKS; LOCKG; if :: up -> refit(1) :: else fi; UNLOCKG; UNLOCKS; STEP;
  LOCKS; LOCKG; if :: up && waits -> refit(0) :: else fi; UNLOCKG; UNLOCKS;
dead:
  serving = 0; UNLOCKG; UNLOCKS; UNLOCKX; ended++
}
init {
  bit s, g, x; byte t, n;
  if :: skip :: held = 0; lin = 4; sm = 4 fi;                   /* some of them have added what was held */
  atomic { run P(); run P(); run Service() };
  ended == 3 -> kills = KILLS; kfail = 1;
  command(); command();                                         /* whatever happened, it works after the next commands */
dead:
  assert(up && !susp && !waits && lin >= sm && sm <= dev && shared == 0 && !excl && !grow)
}
